"""Files of weights that others have trained, read as data: what they hold, by name and shape. Free of torch."""
