"""What can go wrong here."""


class CalibrationError(ValueError):
    """Images, activations or a table that cannot give a range."""
