"""Label fidelity: which images show another class than their label, and what is trained on in their place."""
