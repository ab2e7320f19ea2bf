"""The images: where they lie, what each of them is, which are trained on."""
