"""One file per data set: where it is published, under which licence, and how features are taken from it."""
