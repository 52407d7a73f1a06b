"""Guidance in other libraries' trainers; each module needs its library."""
