"""The primitives behind the public ops: ``gram``, ``mix``, ``cross_gram_sq``, ``prototype_loss``.

Each folder holds the plain-torch reference, the native implementation, and the registration with torch.
They take canonical arguments and check nothing that the ops above have checked.
"""
