"""The walls around a process of a machine (docs/isolation.md).

A process confines itself once, for ever, before a guest runs. Only this package and `cerne.kvm` use
ctypes.
"""
