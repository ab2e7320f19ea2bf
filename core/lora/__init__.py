"""The adapters on the UNet, and the one file that holds them."""
