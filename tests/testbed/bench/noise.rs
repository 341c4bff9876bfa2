//! Bytes that look random, do not get smaller, and are the same in every run.

/// A generator (xorshift) with a fixed seed.
pub struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    /// Fills a buffer, whose length is a multiple of eight.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for bytes in buffer.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}
