/* flock() and folders' fsync() as on a network file system: the first says ENOLCK, the second EINVAL. Each result that is
   put in its place by link() is listed in the file $LANDED. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int flock(int descriptor, int operation) {
  (void)descriptor; (void)operation;
  errno = ENOLCK;
  return -1;
}

int link(const char *from, const char *to) {
  int (*next)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "link");
  int answer = next(from, to);
  int error = errno;
  if (answer == 0 && strstr(to, "/result.json")) {
    char line[4096];
    size_t length = strlen(to);
    int log = open(getenv("LANDED"), O_WRONLY | O_APPEND | O_CREAT, 0666);
    memcpy(line, to, length);
    line[length] = '\n';
    if (write(log, line, length + 1) < 0) abort();
    close(log);
  }
  errno = error;
  return answer;
}

int fsync(int descriptor) {
  struct stat status;
  int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  if (fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {
    errno = EINVAL;
    return -1;
  }
  return next(descriptor);
}
