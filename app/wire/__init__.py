"""Request and response bodies, shared by server and clients. No FastAPI."""
