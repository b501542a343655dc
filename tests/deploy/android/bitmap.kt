// Android's pictures: all of one colour that depends on the place; scaling keeps that.
@file:Suppress("UNUSED_PARAMETER")

package android.graphics

class Bitmap(val width: Int, val height: Int) {
    fun getPixels(
        pixels: IntArray,
        offset: Int,
        stride: Int,
        x: Int,
        y: Int,
        width: Int,
        height: Int
    ) {
        require(offset == 0 && x == 0 && y == 0 && width == this.width)
        require(height == this.height)
        for (row in 0 until height) for (column in 0 until width) {
            val colour = (row shl 16) or (column shl 8) or (row + column)
            pixels[row * stride + column] = (0xff shl 24) or colour
        }
    }

    companion object {
        @JvmStatic
        fun createScaledBitmap(source: Bitmap, width: Int, height: Int, filter: Boolean) =
            Bitmap(width, height)
    }
}
