"""Finding, pairing and decoding the files of a data set."""
