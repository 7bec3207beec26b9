"""The commands of `rehearsal-kit`; begin at main.py."""
