"""The official files of the data sets: fetched, unpacked, checked, and read into arrays. Free of torch."""
