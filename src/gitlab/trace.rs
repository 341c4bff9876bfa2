//! Which bytes of a job's log GitLab gets next.
//!
//! The log file on the host is the log in GitLab, byte for byte, so one offset means the same on both sides. How
//! much GitLab has is known only from GitLab's answers; a new holder finds out by offering the first bytes and
//! reading the refusal. Pure: bytes come from the host in order, answers from GitLab in any.

/// Most bytes of one PATCH: the server's default limit.
pub const MAX_PATCH: usize = 1024 * 1024;

/// Bytes held back from the host while GitLab does not take them; beyond it the stream is not read on, and the
/// log waits on the host's disk.
pub const MAX_BUFFERED: usize = 2 * MAX_PATCH;

/// The part of a log between the host and GitLab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Offset of the first buffered byte; every byte before it is GitLab's.
    base: u64,
    buffer: Vec<u8>,
    /// Bytes before this offset are GitLab's although they were not seen here; they are dropped as they come.
    skip_to: u64,
}

/// What an answer about the server's size leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resync {
    /// Go on from the buffer.
    Continue,
    /// The bytes from this offset are not held any more: attach again from there.
    Refetch {
        /// First byte needed.
        from: u64,
    },
}

/// Bytes came that do not continue the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host's log went on at byte {got}, expected {expected}")]
pub struct Gap {
    /// The byte that should have come.
    pub expected: u64,
    /// The byte that came.
    pub got: u64,
}

impl Trace {
    /// A log of which the host will send the bytes from `offset` on.
    pub fn from_offset(offset: u64) -> Self {
        Self { base: offset, buffer: Vec::new(), skip_to: offset }
    }

    /// The offset after the last byte seen.
    pub fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Whether more bytes may be read from the host.
    pub fn has_room(&self) -> bool {
        self.buffer.len() < MAX_BUFFERED
    }

    /// Whether GitLab has every byte seen.
    pub fn is_drained(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Takes bytes from the host. Bytes seen before are dropped.
    ///
    /// # Errors
    /// When the bytes begin after the next one due.
    pub fn push(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Gap> {
        let expected = self.end();
        if offset > expected {
            return Err(Gap { expected, got: offset });
        }
        let seen = usize::try_from(expected - offset).unwrap_or(usize::MAX);
        self.buffer.extend_from_slice(bytes.get(seen..).unwrap_or_default());
        self.drop_until(self.skip_to);
        Ok(())
    }

    /// The offset and bytes of the next PATCH, or `None` when there is nothing to send.
    pub fn next_patch(&self) -> Option<(u64, &[u8])> {
        let length = self.buffer.len().min(MAX_PATCH);
        self.buffer.get(..length).filter(|bytes| !bytes.is_empty()).map(|bytes| (self.base, bytes))
    }

    /// GitLab answered that its log has `size` bytes, whether it took the PATCH or refused its range.
    pub fn server_has(&mut self, size: u64) -> Resync {
        if size < self.base {
            return Resync::Refetch { from: size };
        }
        self.skip_to = size;
        self.drop_until(size);
        Resync::Continue
    }

    fn drop_until(&mut self, offset: u64) {
        let known = offset.min(self.end());
        if let Ok(count) = usize::try_from(known.saturating_sub(self.base)) {
            self.buffer.drain(..count);
            self.base += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// GitLab's side: keeps what continues its log, refuses the rest with its size.
    #[derive(Default)]
    struct Server {
        log: Vec<u8>,
    }

    impl Server {
        fn patch(&mut self, offset: u64, bytes: &[u8]) -> u64 {
            if offset == self.log.len() as u64 {
                self.log.extend_from_slice(bytes);
            }
            self.log.len() as u64
        }
    }

    /// What may happen between two bytes of log.
    #[derive(Debug, Clone, Copy)]
    enum Happening {
        /// The host sends up to so many bytes.
        Read(usize),
        /// A PATCH is answered.
        Patch,
        /// A PATCH is carried out and its answer lost.
        PatchAnswerLost,
        /// A PATCH never arrives.
        PatchLost,
        /// The holder dies; a new one attaches from the start.
        Takeover,
        /// The stream breaks; the holder attaches again where it was.
        Reattach,
        /// GitLab loses its log from that point (a reset).
        Truncate(usize),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (1usize..40).prop_map(Happening::Read),
            Just(Happening::Patch),
            Just(Happening::PatchAnswerLost),
            Just(Happening::PatchLost),
            Just(Happening::Takeover),
            Just(Happening::Reattach),
            (0usize..200).prop_map(Happening::Truncate),
        ]
    }

    fn read(trace: &mut Trace, log: &[u8], count: usize) {
        let from = trace.end() as usize;
        let to = (from + count).min(log.len());
        if from < to {
            trace.push(from as u64, &log[from..to]).unwrap();
        }
    }

    fn patch(trace: &mut Trace, server: &mut Server) {
        if let Some((offset, bytes)) = trace.next_patch() {
            let size = server.patch(offset, bytes);
            if let Resync::Refetch { from } = trace.server_has(size) {
                *trace = Trace::from_offset(from);
            }
        }
    }

    proptest! {
        #[test]
        fn the_log_arrives_whole_after_any_sequence_of_answers_cuts_and_takeovers(
            log in proptest::collection::vec(any::<u8>(), 1..300),
            happenings in proptest::collection::vec(happening(), 0..80),
        ) {
            let mut server = Server::default();
            let mut trace = Trace::from_offset(0);
            for happening in happenings {
                match happening {
                    Happening::Read(count) => read(&mut trace, &log, count),
                    Happening::Patch => patch(&mut trace, &mut server),
                    Happening::PatchAnswerLost => {
                        if let Some((offset, bytes)) = trace.next_patch() {
                            server.patch(offset, bytes);
                        }
                    }
                    Happening::PatchLost => {}
                    Happening::Takeover => trace = Trace::from_offset(0),
                    Happening::Reattach => trace = Trace::from_offset(trace.base),
                    Happening::Truncate(size) => server.log.truncate(size),
                }
                prop_assert!(log.starts_with(&server.log));
            }
            // A reset that happens while nothing is left to send is found by the final update (412), which starts
            // again from byte 0; the last round below is that.
            let mut trace = Trace::from_offset(0);
            while server.log.len() < log.len() {
                read(&mut trace, &log, 50);
                patch(&mut trace, &mut server);
            }
            prop_assert_eq!(&server.log, &log);
        }
    }

    #[test]
    fn a_gap_from_the_host_is_an_error_and_changes_nothing() {
        let mut trace = Trace::from_offset(10);
        trace.push(10, b"abc").unwrap();
        let before = trace.clone();
        assert_eq!(trace.push(14, b"x"), Err(Gap { expected: 13, got: 14 }));
        assert_eq!(trace, before);
    }

    #[test]
    fn a_patch_is_never_larger_than_the_servers_limit() {
        let mut trace = Trace::from_offset(0);
        trace.push(0, &vec![b'x'; MAX_PATCH + 5]).unwrap();
        assert_eq!(trace.next_patch().unwrap().1.len(), MAX_PATCH);
    }
}
