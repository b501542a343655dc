// The part of LiteRT's Kotlin API that generated classes use, as LiteRT 2 declares it. The
// model is played by files: `run` writes each input to in_NAME and reads out_NAME.
@file:Suppress("UNUSED_PARAMETER")

package com.google.ai.edge.litert

import android.content.res.AssetManager
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

enum class Accelerator { NONE, CPU, GPU, NPU }

class TensorBuffer internal constructor(internal var bytes: ByteArray) : AutoCloseable {
    private fun buffer(size: Int): ByteBuffer {
        bytes = ByteArray(size)
        return ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
    }

    private fun reader() = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)

    fun writeFloat(data: FloatArray) { buffer(4 * data.size).asFloatBuffer().put(data) }

    fun writeInt(data: IntArray) { buffer(4 * data.size).asIntBuffer().put(data) }

    fun writeLong(data: LongArray) { buffer(8 * data.size).asLongBuffer().put(data) }

    fun writeInt8(data: ByteArray) { bytes = data.copyOf() }

    fun readFloat() = FloatArray(bytes.size / 4).also { reader().asFloatBuffer().get(it) }

    fun readInt() = IntArray(bytes.size / 4).also { reader().asIntBuffer().get(it) }

    fun readLong() = LongArray(bytes.size / 8).also { reader().asLongBuffer().get(it) }

    fun readInt8() = bytes.copyOf()

    override fun close() {}
}

class CompiledModel private constructor(private val folder: File) : AutoCloseable {
    class Options(vararg accelerators: Accelerator) {
        init {
            require(accelerators.isNotEmpty())
        }
    }

    fun createInputBuffer(inputName: String, signature: String? = null) =
        TensorBuffer(ByteArray(0))

    fun createOutputBuffer(outputName: String, signature: String? = null) =
        TensorBuffer(ByteArray(0))

    fun run(
        inputs: Map<String, TensorBuffer>,
        outputs: Map<String, TensorBuffer>,
        signature: String? = null
    ) {
        require(signature == "serving_default")
        inputs.forEach { (name, buffer) -> File(folder, "in_$name").writeBytes(buffer.bytes) }
        outputs.forEach { (name, buffer) ->
            buffer.bytes = File(folder, "out_$name").readBytes()
        }
    }

    override fun close() {}

    companion object {
        @JvmOverloads
        @JvmStatic
        fun create(
            assetManager: AssetManager,
            assetName: String,
            options: Options = Options(Accelerator.CPU)
        ): CompiledModel {
            assetManager.open(assetName).close()
            return CompiledModel(assetManager.folder)
        }
    }
}
