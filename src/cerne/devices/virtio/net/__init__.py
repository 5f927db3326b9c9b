"""The network device (virtio 1.2, section 5.1): the card, and the links that it may have."""
