# The service of the tutorial. (No docstring here, because hug would print it in its 404 response.)
import hug


@hug.get()
def index():
    return {"timber": "so delicious"}
