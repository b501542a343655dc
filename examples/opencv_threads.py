"""Classifies pictures with OpenCV on 1, 2, ... threads, from an ONNX file.

    python examples/opencv_threads.py model.onnx picture.png --threads=4

The file comes from `tfc.export_onnx(model, "model.onnx")`. OpenCV needs nothing else:
neither TensorFlow nor this package is imported here. Pictures are scaled to -1..1,
which must be what the model was trained with.
"""

import argparse
import os
import statistics
import time

import cv2
import numpy as np


def main():
    """Prints the best class of each picture, and the time of an inference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=".onnx file with channels last")
    parser.add_argument("pictures", nargs="+", help="files that OpenCV reads")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--engine", default="ENGINE_NEW", help="or ENGINE_CLASSIC")
    args = parser.parse_args()
    net = cv2.dnn.readNetFromONNX(args.model, getattr(cv2.dnn, args.engine))
    images = [prepared(path, args.size) for path in args.pictures]
    for path, image in zip(args.pictures, images, strict=True):
        net.setInput(image)
        scores = net.forward().ravel()
        print(f"{path}: class {scores.argmax()}, score {scores.max():.4f}")
    for threads in range(1, args.threads + 1):
        cv2.setNumThreads(threads)
        print(f"{threads} thread(s): {milliseconds(net, images[0]):.3f} ms")


def prepared(path, size):
    """A picture as the model's input: one example, red first, from -1 to 1."""
    image = cv2.imread(path)
    if image is None:
        raise SystemExit(f"OpenCV cannot read {path!r}")
    image = cv2.cvtColor(cv2.resize(image, (size, size)), cv2.COLOR_BGR2RGB)
    return (image.astype(np.float32) / 127.5 - 1.0)[np.newaxis]


def milliseconds(net, image, repeats=30):
    """Median time of an inference, after a warm-up."""
    times = []
    for repeat in range(repeats + 3):
        start = time.perf_counter()
        net.setInput(image)
        net.forward()
        if repeat >= 3:
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
