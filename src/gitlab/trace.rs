//! Which bytes of a job's log GitLab gets next.
//!
//! The log file on the host is the log in GitLab, byte for byte, so one offset means the same on both sides. How
//! much GitLab has is known only from GitLab's answers; a new holder finds out by offering the first bytes and
//! reading the refusal. Pure: bytes come from the host in order, answers from GitLab in any.

/// Most bytes of one PATCH: half of the server's default limit, so that a job's memory stays small.
pub const MAX_PATCH: usize = 512 * 1024;

/// Bytes held here while GitLab does not take them; what comes beyond them waits on the host's disk.
pub const MAX_BUFFERED: usize = 2 * MAX_PATCH;

/// Memory that a drained buffer keeps.
const IDLE_CAPACITY: usize = 16 * 1024;

/// The part of a log between the host and GitLab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Offset of the first buffered byte; every byte before it is GitLab's.
    base: u64,
    buffer: Vec<u8>,
    /// Bytes before this offset are GitLab's although they were not seen here; they are dropped as they come.
    skip_to: u64,
    /// Most bytes held.
    room: usize,
    /// Bytes after the buffered ones came and were let go.
    has_let_go: bool,
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
        Self { base: offset, buffer: Vec::new(), skip_to: offset, room: MAX_BUFFERED, has_let_go: false }
    }

    /// The offset after the last byte held, or held before.
    pub fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Where a new stream of the host is to begin; what was let go comes with it again.
    pub fn read_on(&mut self) -> u64 {
        self.has_let_go = false;
        self.end()
    }

    /// Lets it hold so many bytes from now on, up to its own limit. What it holds already stays.
    pub fn set_room(&mut self, room: usize) {
        self.room = room.min(MAX_BUFFERED);
    }

    /// Whether more bytes can be held.
    pub fn has_room(&self) -> bool {
        self.buffer.len() < self.room && !self.has_let_go
    }

    /// Whether GitLab has every byte held.
    pub fn is_drained(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether GitLab has every byte held, and more came that was let go: see [`Self::read_on`].
    pub fn lacks_more(&self) -> bool {
        self.has_let_go && self.is_drained()
    }

    /// Takes bytes from the host. Bytes seen before are dropped; those for which there is no room are let go, and so
    /// is everything after them.
    ///
    /// # Errors
    /// When the bytes begin after the next one due.
    pub fn push(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Gap> {
        if !self.has_room() {
            self.has_let_go = true;
            return Ok(());
        }
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
        if self.buffer.is_empty() {
            self.buffer.shrink_to(IDLE_CAPACITY);
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

    /// The operator's side: the trace, and how far the host's log was read.
    struct Reader {
        trace: Trace,
        at: usize,
    }

    impl Reader {
        /// Attached from an offset, with room for few bytes.
        fn from(offset: u64) -> Self {
            Self { trace: Trace { room: 60, ..Trace::from_offset(offset) }, at: offset as usize }
        }

        fn read(&mut self, log: &[u8], count: usize) {
            let to = (self.at + count).min(log.len());
            if self.at < to {
                self.trace.push(self.at as u64, &log[self.at..to]).unwrap();
                self.at = to;
            }
            assert!(self.trace.buffer.len() < 60 + 50, "more is held than there is room for");
        }

        fn patch(&mut self, server: &mut Server) {
            if let Some((offset, bytes)) = self.trace.next_patch() {
                let size = server.patch(offset, bytes);
                if let Resync::Refetch { from } = self.trace.server_has(size) {
                    *self = Self::from(from);
                }
            }
            if self.trace.lacks_more() {
                self.at = self.trace.read_on() as usize;
            }
        }
    }

    proptest! {
        #[test]
        fn the_log_arrives_whole_after_any_sequence_of_answers_cuts_and_takeovers(
            log in proptest::collection::vec(any::<u8>(), 1..500),
            happenings in proptest::collection::vec(happening(), 0..80),
        ) {
            let mut server = Server::default();
            let mut reader = Reader::from(0);
            for happening in happenings {
                match happening {
                    Happening::Read(count) => reader.read(&log, count),
                    Happening::Patch => reader.patch(&mut server),
                    Happening::PatchAnswerLost => {
                        if let Some((offset, bytes)) = reader.trace.next_patch() {
                            server.patch(offset, bytes);
                        }
                    }
                    Happening::PatchLost => {}
                    Happening::Takeover => reader = Reader::from(0),
                    Happening::Reattach => reader.at = reader.trace.read_on() as usize,
                    Happening::Truncate(size) => server.log.truncate(size),
                }
                prop_assert!(log.starts_with(&server.log));
            }
            // A reset that happens while nothing is left to send is found by the final update (412), which starts
            // again from byte 0; the last round below is that.
            let mut reader = Reader::from(0);
            while server.log.len() < log.len() {
                reader.read(&log, 50);
                reader.patch(&mut server);
            }
            prop_assert_eq!(&server.log, &log);
        }
    }

    #[test]
    fn what_finds_no_room_is_let_go_and_read_again() {
        let mut trace = Trace::from_offset(0);
        trace.push(0, &vec![b'x'; MAX_BUFFERED]).unwrap();
        assert!(!trace.has_room() && !trace.has_let_go);
        trace.push(MAX_BUFFERED as u64, b"more").unwrap();
        assert!(!trace.lacks_more());
        assert_eq!(trace.server_has(MAX_PATCH as u64), Resync::Continue);
        // What comes after a byte that was let go would leave a hole.
        trace.push(MAX_BUFFERED as u64 + 4, b"and more").unwrap();
        assert_eq!(trace.end(), MAX_BUFFERED as u64);
        assert_eq!(trace.server_has(MAX_BUFFERED as u64), Resync::Continue);
        assert!(trace.lacks_more());
        assert_eq!(trace.read_on(), MAX_BUFFERED as u64);
        assert!(trace.has_room());
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
