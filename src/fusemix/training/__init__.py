"""What a fit is made of: the order of the pairs, their way to the device, one step, and what survives a kill."""
