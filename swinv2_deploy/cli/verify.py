"""stub"""
def verify_command() -> None:
    """Verify."""
