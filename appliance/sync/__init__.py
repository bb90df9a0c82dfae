"""Learn of signed versions, fetch them, and put them in place; what runs never needs the hub."""
