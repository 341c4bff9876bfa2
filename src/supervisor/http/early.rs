//! Hears a server that answers before it has taken the whole body.
//!
//! A server that refuses a large upload says so and closes. What is still sent then fails, and the refusal, which has
//! arrived, would never be read. So a connection that takes no more is not an error while sending: the body ends there,
//! and what has arrived is read.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// Whether the connection takes no more. Set by the transport, read by the body.
#[derive(Debug, Clone, Default)]
pub struct Flag(Arc<AtomicBool>);

impl Flag {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body that ends when the connection takes no more.
pub struct Body<'a> {
    /// Where it comes from.
    pub from: &'a mut dyn Read,
    /// The connection's flag.
    pub answered: Flag,
}

impl Read for Body<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.answered.is_set() { Ok(0) } else { self.from.read(out) }
    }
}

/// Puts [`Lenient`] around plain connections, below TLS.
#[derive(Debug)]
pub struct EarlyAnswers {
    /// Set when the connection takes no more.
    pub answered: Flag,
}

impl<In: Transport> Connector<In> for EarlyAnswers {
    type Out = Lenient<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| Lenient { inner, answered: self.answered.clone() }))
    }
}

/// A connection whose writes do not fail when the other side has closed.
#[derive(Debug)]
pub struct Lenient<T> {
    inner: T,
    answered: Flag,
}

impl<T: Transport> Transport for Lenient<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.answered.is_set() {
            return Ok(());
        }
        match self.inner.transmit_output(amount, timeout) {
            Err(Error::Io(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.answered.set();
                Ok(())
            }
            sent => sent,
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        !self.answered.is_set() && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
