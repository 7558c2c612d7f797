"""Errors of the data layer, worded for whoever prepared the data."""


class DataError(ValueError):
    """The dataset, or what is asked of it, is not usable as it stands."""


class SampleFileError(DataError):
    """A file of a sample is missing or damaged; the message names both."""
