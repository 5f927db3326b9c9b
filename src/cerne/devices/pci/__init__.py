"""The PCI bus: configuration space, its two ways of access, and MSI-X (PCI Local Bus 3.0)."""
