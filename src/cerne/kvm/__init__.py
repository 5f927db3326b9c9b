"""The kernel's hypervisor as Python objects: /dev/kvm, virtual machines, vCPUs, guest memory."""
