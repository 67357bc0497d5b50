"""Where strips wait that do not fit on the device."""
