"""Specifications: models of machines, disks and network cards, and their notation as text.

Everything here is checked without access to a host: no path is opened, no name is looked up, and
nothing above this package is imported. The manager looks up what a specification names on a host.
"""
