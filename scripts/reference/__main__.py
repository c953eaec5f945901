"""`python -m scripts.reference` writes docs/reference/."""

from scripts.reference import write

if __name__ == "__main__":
    write()
