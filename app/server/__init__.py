"""The server process: uvicorn, HTTP/1.1, memory."""
