"""The work on the device."""
