"""Picture files, masks for a picture, sets of pictures, and plots."""
