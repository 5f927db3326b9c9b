"""Machines that are ready before they are asked for: templates, and pools."""
