"""The network device (virtio 1.2, section 5.1): the card, and its kinds of links."""
