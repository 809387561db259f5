"""The project's version: in every bundle's manifest, and in the package's metadata."""

VERSION = "0.1.0"
