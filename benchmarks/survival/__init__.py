"""Kill an appliance and cut its power, at every point, and look at what is left on its disk."""
