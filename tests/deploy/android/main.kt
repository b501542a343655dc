// Runs the generated classes on the values in a folder and prints what they return.
import android.content.res.AssetManager
import android.graphics.Bitmap
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

fun floats(file: File): FloatArray {
    val bytes = file.readBytes()
    val buffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    return FloatArray(bytes.size / 4).also { buffer.get(it) }
}

fun show(what: String, values: Iterable<Any>) = println("$what ${values.joinToString(" ")}")

fun main(args: Array<String>) {
    val root = File(args[0])
    fun assets(name: String) = AssetManager(File(root, "$name/src/main/assets"))
    val x = floats(File(root, "x.bin"))

    com.example.first.Whole(assets("whole")).use { model ->
        show("whole", model.predict(x)[0].toList())
        val best = model.classify(x, 2)
        show("labels", best.map { it.label })
        show("scores", best.map { it.score })
        show("pixels", model.pixels(Bitmap(100, 50)).toList())
        try {
            model.predict(FloatArray(5))
        } catch (err: IllegalArgumentException) {
            println("refused ${err.message}")
        }
    }
    com.example.second.Plain(assets("plain")).use { model ->
        show("plain", model.predict(x)[0].toList())
    }
    com.example.fourth.Odd(assets("odd")).use { model ->
        val values = List(5) { floatArrayOf(1f * it, -1f * it) }
        val (k, price, say, first, second) = values
        val raw = byteArrayOf(7, -100)
        show("odd", model.predict(k, price, say, first, second, raw)[0].toList())
        val best = model.classify(k, price, say, first, second, raw, k = 1)
        show("side", best.map { it.label })
    }
    com.example.third.TwoInputs(assets("two")).use { model ->
        val (total, scaled) = model.predict(floatArrayOf(0.5f, -2f), intArrayOf(3, 1, 2))
        show("total", total.toList())
        show("scaled", scaled.toList())
    }
}
