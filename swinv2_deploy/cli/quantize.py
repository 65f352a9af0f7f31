"""stub"""
def quantize_command() -> None:
    """Quantize."""
