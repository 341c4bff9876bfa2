//! Holds a pod's namespaces open: the program of the sandbox image that the test bed's containerd starts for each
//! pod. Compiled alone by `rustc`, static, with nothing but the standard library.

fn main() {
    loop {
        std::thread::park();
    }
}
