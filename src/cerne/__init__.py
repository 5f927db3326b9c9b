"""Cerne: the kernel is the hypervisor, Python is the machine around it."""
