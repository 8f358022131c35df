"""``python -m app`` is ``plusofon-verify``."""

from app.cli import main

if __name__ == "__main__":
    main()
