"""Programs for building, testing and measuring the appliance; none of them is installed with it."""
