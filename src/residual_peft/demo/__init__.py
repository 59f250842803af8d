"""The bundled small CLIP, the world that it was trained on, and the demo."""

__all__ = ["tasks", "world"]
