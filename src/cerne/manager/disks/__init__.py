"""The disks of machines and what lies under them."""
