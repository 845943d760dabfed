"""Picture files, drawn masks, sets of pictures, and plots."""
