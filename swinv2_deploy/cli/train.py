"""stub"""
def train_command() -> None:
    """Train."""
