"""What a person asks for: models of machines, disks and network cards, and the text they come from.

Everything here is checked without a look at a host: no path is opened, no name is looked up, and
nothing above this package is imported. What a specification names on a host, the manager looks for.
"""
