"""labctl: virtual machines and containers side by side in one lab, from one profile."""

__version__ = "0.1.0"
