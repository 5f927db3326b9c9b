"""The engine `native`: each machine is a process of our own VMM."""

from cerne.engine.native.engine import NativeEngine as NativeEngine
