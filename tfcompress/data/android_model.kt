// Written by tfcompress for #asset; do not edit.
package #package

import android.content.res.AssetManager
#imports
import java.io.Closeable

/**
 * Runs #asset with LiteRT: values in and out are as in training.
 *
#inputs_doc
#outputs_doc
 */
class #class_name(
    assets: AssetManager,
    vararg accelerators: Accelerator = arrayOf(Accelerator.CPU)
) : Closeable {
    private val model =
        CompiledModel.create(assets, "#asset", CompiledModel.Options(*accelerators))
    private val inputs = INPUTS.associateWith { model.createInputBuffer(it, SIGNATURE) }
    private val outputs = OUTPUTS.associateWith { model.createOutputBuffer(it, SIGNATURE) }
#labels_member

    /** Values of each output, one example. */
    @Synchronized
    fun predict(#parameters): List<FloatArray> {
#writes
        model.run(inputs, outputs, SIGNATURE)
        return listOf(
#reads
        )
    }
#classify
#bitmap

    override fun close() {
        inputs.values.forEach { it.close() }
        outputs.values.forEach { it.close() }
        model.close()
    }

    companion object {
        private const val SIGNATURE = #signature
        private val INPUTS = listOf(#input_names)
        private val OUTPUTS = listOf(#output_names)
#constants

        /** Refuses an input of another size than the model's. */
        internal fun checkSize(name: String, size: Int, expected: Int) {
            require(size == expected) {
                "`$name` must have $expected values. Received: $size"
            }
        }

        /** `(value - mean) / std`, each for its channel, the last axis. */
        internal fun normalize(
            values: FloatArray,
            mean: FloatArray,
            std: FloatArray
        ): FloatArray =
            FloatArray(values.size) {
                (values[it] - mean[it % mean.size]) / std[it % std.size]
            }

        /** The nearest integers, halves to even, as the model was trained with. */
        internal fun quantize(values: FloatArray, scale: Float, zeroPoint: Int): ByteArray =
            ByteArray(values.size) {
                val steps = Math.rint((values[it] / scale).toDouble()) + zeroPoint
                steps.coerceIn(-128.0, 127.0).toInt().toByte()
            }

        internal fun dequantize(values: ByteArray, scale: Float, zeroPoint: Int): FloatArray =
            FloatArray(values.size) { (values[it] - zeroPoint) * scale }

        /** Indices of the `k` largest values, the largest first; ties keep their order. */
        internal fun largest(values: FloatArray, k: Int): List<Int> =
            values.indices.sortedByDescending { values[it] }.take(k)
    }
}
