"""Hold the code generated from the fleet's proto, which hub and appliance share."""
